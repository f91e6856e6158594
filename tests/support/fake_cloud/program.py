"""`qa-flax` as it is, but that gs:// is a folder."""

import fake_gs

from qa_flax.cli import main

fake_gs.register()
main()
