"""Orbax adds no handler to the root logger, and warnings are still printed."""

import asyncio
import gc
import os
import subprocess
import sys

import pytest

from qa_flax.train.root_handlers import keep_root_handlers, orbax_errors_raised_only

PROGRAM = """
import logging, sys
import numpy as np
from qa_flax.train.root_handlers import keep_root_handlers

with keep_root_handlers():
    import orbax.checkpoint as ocp
root = logging.getLogger()
assert not root.handlers, root.handlers
assert root.level == logging.WARNING
with keep_root_handlers(), ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(sys.argv[1], {"a": np.ones(3)})
    checkpointer.wait_until_finished()
    logging.getLogger("somebody").warning("printed as without handlers")
assert not root.handlers, root.handlers
"""


def test_orbax_is_imported_and_saves_without_adding_a_handler(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "saved")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "saved").exists()
    assert "printed as without handlers\n" in result.stderr


def test_after_a_failed_save_asyncio_reports_no_further_writer(caplog):
    def forget(error):
        """Delete a future whose error nobody has asked for."""
        loop = asyncio.new_event_loop()
        loop.create_future().set_exception(error)
        loop.close()
        gc.collect()
        return [str(record.exc_info[1]) for record in caplog.records]

    written = ValueError('Error writing "a" in OCDBT database: File too large')
    with pytest.raises(OSError, match="full"), orbax_errors_raised_only():
        raise OSError("full")
    assert forget(written) == []
    assert forget(ValueError("another")) == ["another"]


def test_handlers_of_the_application_stay(caplog):
    import logging

    before = list(logging.getLogger().handlers)
    with keep_root_handlers():
        assert logging.getLogger().handlers == before
    assert logging.getLogger().handlers == before
