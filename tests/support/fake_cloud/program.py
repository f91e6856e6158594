"""The command `qa-flax`, with gs:// replaced by a folder."""

import fake_gs

from qa_flax.cli import main

fake_gs.register()
main()
