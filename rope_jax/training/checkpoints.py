"""Checkpoints of training: Orbax on disk, a `TrainState` and a data iterator's state outside."""

from __future__ import annotations

from pathlib import Path

import jax
import orbax.checkpoint as ocp

from rope_jax.errors import InputError
from rope_jax.training.state import TrainState


class Checkpoints:
    """Numbered checkpoints in a folder. A checkpoint appears complete or not at all.

    Use as a context manager: leaving it waits for the write in progress.
    """

    def __init__(self, folder: Path, keep: int = 1):
        """Opens or creates the folder.

        Args:
            folder: where checkpoints live.
            keep: how many of the newest are kept.
        """
        self.folder = Path(folder).resolve()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=("state", "data"))

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_):
        self._manager.close()

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, data_state: dict) -> None:
        """Writes a checkpoint in the background; the state is copied first and may be donated after.

        Args:
            state: training state; its step names the checkpoint.
            data_state: JSON-able state of the data iterator after the state's last batch.
        """
        items = {"state": ocp.args.StandardSave(state), "data": ocp.args.JsonSave(data_state)}
        self._manager.save(int(state.step), args=ocp.args.Composite(**items))

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict]:
        """Reads the newest checkpoint straight into the target shardings.

        Args:
            abstract: `jax.ShapeDtypeStruct` leaves that carry the shardings wanted.

        Returns:
            The state, and the data iterator's state.

        Raises:
            InputError: if the checkpoint is damaged or of another model; the message names the folder.
        """
        step = self.latest()
        items = {"state": ocp.args.StandardRestore(abstract), "data": ocp.args.JsonRestore()}
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax raises many types for what is one thing to the user.
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise InputError(
                f"checkpoint {self.folder / str(step)} cannot be read ({reason}): delete that folder to go "
                "on from the one before it"
            ) from error
        return restored["state"], restored["data"]


def read_trained(folder: Path, abstract, step: int | None = None) -> dict:
    """Reads what was trained from a checkpoint, and neither moments nor anything else; writes nothing.

    Args:
        folder: where checkpoints live.
        abstract: `jax.ShapeDtypeStruct` leaves of `TrainState.params`, or a part of these, that carry the shardings
            wanted.
        step: of the checkpoint; None takes the newest.

    Returns:
        What was trained, shaped like `abstract`.

    Raises:
        InputError: if there is no such checkpoint, or it is damaged or of another model.
    """
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist: the run has no checkpoint yet")
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(folder, options=options, item_names=("state", "data")) as manager:
        steps = sorted(manager.all_steps())
        step = steps[-1] if step is None and steps else step
        if step not in steps:
            raise InputError(f"{folder} holds no checkpoint of step {step}: it has {steps or 'none'}")
        item = {"params": abstract}
        restore = ocp.args.PyTreeRestore(
            item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
        )
        try:
            restored = manager.restore(step, args=ocp.args.Composite(state=restore))
        except Exception as error:  # Orbax raises many types for what is one thing to the user.
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise InputError(f"checkpoint {folder / str(step)} cannot be read ({reason}): take another step") from error
    return restored["state"]["params"]


def abstract_state(state_shape, shardings) -> TrainState:
    """Shapes and dtypes of a state with the shardings to restore it to.

    Args:
        state_shape: `TrainState` of arrays or `jax.ShapeDtypeStruct`.
        shardings: `TrainState` of shardings.

    Returns:
        `TrainState` of `jax.ShapeDtypeStruct` with shardings.
    """
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state_shape,
        shardings,
    )
