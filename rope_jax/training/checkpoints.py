"""Checkpoints of training, written by Orbax: a `TrainState` and the progress of the run."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from rope_jax import multihost
from rope_jax.errors import InputError
from rope_jax.files import DISK_FULL, sealed, unsealed
from rope_jax.training.finite import NonFiniteLoss
from rope_jax.training.state import TrainState


class Checkpoints:
    """Numbered checkpoints in a folder. Saving is atomic.

    Every process of a run calls every method and sees the same folder. A checkpoint restores on any mesh and in any
    number of processes. A context manager: its exit waits for the save in progress.
    """

    def __init__(self, folder: Path, keep: int = 1, keep_best: int = 0):
        """Opens or creates the folder, which keeps the newest checkpoints, and the best by loss as well."""
        self.folder = Path(folder).resolve()
        self._losses = losses(self.folder)
        policy = _NewestAndBest(keep, keep_best, self._losses)
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=("state", "data"))

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_):
        with self._full_disk_as_such():
            self._manager.close()

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, progress: dict, loss: float) -> None:
        """Saves a checkpoint in the background, from a copy of the state, which may be donated afterwards.

        Args:
            state: its step names the checkpoint.
            progress: JSON-serialisable progress of the run, the same in every process.
            loss: loss by which the best checkpoints are kept.

        Raises:
            NonFiniteLoss: if an array holds a value that is not finite; earlier checkpoints stay.
            OSError: if the disk is full, maybe only at the next call or at the exit; earlier checkpoints stay.
        """
        step = int(state.step)
        checksums, unsound = _examined(state)
        if unsound:
            raise NonFiniteLoss(f"step {step} makes {unsound[0]} not finite")
        self._losses[step] = loss
        record = {"progress": progress, "loss": loss, "fingerprint": checksums}
        items = {"state": ocp.args.StandardSave(state), "data": ocp.args.JsonSave(sealed(record))}
        with self._full_disk_as_such():
            self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict]:
        """Restores the newest intact checkpoint into the target shardings.

        Corruption, even one flipped bit, and values that are not finite are detected: a warning names the damaged
        checkpoint, and once an older one is restored, the damaged one is renamed so that its step can be saved again.

        `abstract` is a state of `jax.ShapeDtypeStruct` with shardings. Gives the state and the progress; `InputError`
        names the newest checkpoint if all are damaged or of another model.
        """
        reasons: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state, record = multihost.together(lambda step=step: self._read(step, abstract))
                _verify(state, record["fingerprint"])
            except Exception as error:  # Orbax raises many types for a damaged checkpoint.
                reasons[step] = _first_line(error)
                continue
            for damaged, reason in reasons.items():
                warnings.warn(
                    f"checkpoint {self.folder / str(damaged)} is damaged ({reason}): resuming from step {step} "
                    f"instead. It is kept as {self._set_aside(damaged)}, which may be deleted",
                    stacklevel=2,
                )
            if reasons:
                self._manager.reload()
            return state, record["progress"]
        newest, reason = next(iter(reasons.items()))
        raise InputError(
            f"checkpoint {self.folder / str(newest)} cannot be read ({reason}), and no older one can: is it of "
            "this model? If it is damaged, delete that folder to start over or to resume from an older one"
        )

    def _read(self, step: int, abstract: TrainState) -> tuple[TrainState, dict]:
        # Not through the manager, which synchronises processes after every read: a process that failed would not come.
        place = self.folder / str(step)
        record = _record(place)
        handler, args = ocp.StandardCheckpointHandler(), ocp.args.StandardRestore(abstract)
        state = handler.restore(place / "state", args=args)  # pyright: ignore[reportArgumentType]  # pathlib serves
        return state, record

    @contextlib.contextmanager
    def _full_disk_as_such(self) -> Iterator[None]:
        """Raises the OSError of a full disk, for which Orbax has a ValueError."""
        try:
            yield
        except ValueError as error:
            for number in DISK_FULL:
                if os.strerror(number) in str(error):
                    raise OSError(number, os.strerror(number), str(self.folder)) from error
            raise

    def _set_aside(self, step: int) -> Path:
        def rename():
            number = 1
            while (target := self.folder / f"damaged-{step}-{number}").exists():
                number += 1
            (self.folder / str(step)).rename(target)
            return str(target)

        return Path(multihost.from_first(rename))


class _NewestAndBest(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the newest checkpoints and those of lowest loss."""

    def __init__(self, newest: int, best: int, known: dict[int, float]):
        self._newest, self._best, self._known = newest, best, known

    def should_preserve(self, checkpoints, *, context):
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        # Of equal losses, the newer.
        ranked = sorted((step for step in steps if step in self._known), key=lambda step: (self._known[step], -step))
        kept = {*steps[-self._newest :], *ranked[: self._best]}
        return [step in kept for step in steps]


def losses(folder: Path) -> dict[int, float]:
    """Step to saved loss of the checkpoints in a folder, without those whose record is damaged."""
    found = {}
    for place in Path(folder).glob("[0-9]*"):
        try:
            found[int(place.name)] = float(_record(place)["loss"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


def fingerprint(tree: Any) -> dict[str, int]:
    """Path of each array to its checksum, which changes with any bit of it and is independent of its sharding.

    Storage that flips a bit rarely reports it. The sum over elements `i` of `(2 i + 1) bits_i` modulo 2^32 takes one
    pass through memory, and sums of integers do not depend on their order. Elements have at most 32 bits.
    """
    return _examined(tree)[0]


def _verify(arrays: Any, saved: Mapping[str, int] | list[int]) -> None:
    """Raises ValueError unless arrays, a state or a part of it, are those that were saved, and finite."""
    checksums, unsound = _examined(arrays)
    if isinstance(saved, list):  # of an earlier version, for a whole state
        saved = dict(zip(checksums, saved, strict=True))
    for name, checksum in checksums.items():
        if saved[name] != checksum:
            raise ValueError(f"{name} differs from what was saved")
    if unsound:
        raise ValueError(f"{unsound[0]} is not finite")


def _record(place: Path) -> dict:
    """What was saved with the arrays of a checkpoint; an exception of any type if it is damaged."""
    record = json.loads((place / "data" / "metadata").read_text(encoding="utf-8"))
    # Earlier versions wrote no checksum.
    return record if record.keys() == {"progress", "loss", "fingerprint"} else unsealed(record)


def _examined(tree: Any) -> tuple[dict[str, int], list[str]]:
    """The `fingerprint` of a pytree, and the paths of arrays that are not finite."""
    paths, leaves = zip(*jax.tree_util.tree_flatten_with_path(tree)[0], strict=True)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path in paths]
    sums, sound = jax.device_get(_sums(leaves))
    return dict(zip(names, map(int, sums))), [name for name, is_sound in zip(names, sound) if not is_sound]


@jax.jit
def _sums(leaves):
    """Checksum of each array, and whether it is finite."""

    def of(leaf):
        whole = jnp.issubdtype(leaf.dtype, jnp.integer) or leaf.dtype == bool
        # The optimizer state may be offloaded to host memory.
        leaf = jax.device_put(leaf, jax.memory.Space.Device)
        unsigned = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
        bits = leaf.astype(jnp.uint32) if whole else jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
        index = jnp.zeros(leaf.shape, jnp.uint32)
        for axis, size in enumerate(leaf.shape):
            index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        return jnp.sum((2 * index + 1) * bits, dtype=jnp.uint32), whole or jnp.all(jnp.isfinite(leaf))

    return tuple(zip(*map(of, leaves), strict=True))


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def read_trained(folder: Path, abstract, step: int) -> dict:
    """Reads the trained numbers from a checkpoint, without the optimizer state.

    `abstract` is `TrainState.params` or a part of it, of `jax.ShapeDtypeStruct` with shardings. `InputError` if there
    is no such checkpoint, or it is damaged, not finite or of another model.
    """
    place, item = Path(folder).resolve() / str(step), {"params": abstract}
    if not place.is_dir():
        raise InputError(f"{place} does not exist: the run has checkpoints of {sorted(losses(folder)) or 'no step'}")
    restore_args = ocp.checkpoint_utils.construct_restore_args(item)
    args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)
    handler = ocp.PyTreeCheckpointHandler()
    try:
        fingerprints = _record(place)["fingerprint"]
        restored = handler.restore(place / "state", args=args)  # pyright: ignore[reportArgumentType]  # pathlib serves
        if isinstance(fingerprints, list):
            raise ValueError("an earlier version wrote it, without a checksum for each array")
        _verify(restored, fingerprints)
    except Exception as error:  # Orbax raises many types for a damaged checkpoint.
        raise InputError(f"checkpoint {place} cannot be read ({_first_line(error)}): take another step") from error
    return restored["params"]
