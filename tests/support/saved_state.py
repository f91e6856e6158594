"""Save a checkpoint with a tiny training state."""

import numpy as np

from qa_flax.train import checkpoints

STATE = {"a": np.arange(2000, dtype=np.float32), "b": {"c": np.int32(7)}}


def save(directory, state=STATE):
    with checkpoints.new_folder(directory) as folder:
        checkpoints.save_state(folder, state, {"step": directory.name})
        (folder / checkpoints.TRAINER_STATE).write_text("{}")
        (folder / "model.safetensors").write_bytes(bytes(5000))
