"""Run on two ranks: reads of a checkpoint fail on one rank under every ZeRO stage; both raise an error and continue.

Each rank writes the messages to ``messages-RANK.json`` in the folder; ``test_failed_reads.py`` checks them.
"""

import json
import sys
from pathlib import Path

import torch

from simcast_hpc.config import SimcastError
from simcast_hpc.distributed.engine import build_engine
from simcast_hpc.distributed.partitions import write_fragments
from simcast_hpc.distributed.process_group import TorchRanks, end_rank, join_process_group
from simcast_hpc.train.checkpoint import CheckpointWriter, latest, newest_intact
from simcast_hpc.train.checkpoint_files import Checkpoint, CheckpointError
from tests.archives import tiny_config
from tests.multi_rank.skipped_steps import Line

# ZeRO stage and further options, and the rank whose reads fail. Without ZeRO only rank 0 reads, as it does for the
# further copies of weights under stage 3.
CASES = [
    ({"zero_stage": 0}, 0),
    ({"zero_stage": 1}, 1),
    ({"zero_stage": 2}, 0),
    ({"zero_stage": 3}, 1),
    ({"zero_stage": 3, "precision": "bf16", "zero_hpz_partition_size": 2}, 0),
]


class _Reads:
    """Reads of a checkpoint that fail after a number of them on one rank."""

    def __init__(self, checkpoint: Checkpoint, *, fails_after: int | None):
        self._checkpoint, self.left = checkpoint, fails_after

    def __call__(self, kind: str, name: str, start: int, length: int) -> torch.Tensor:
        if self.left == 0:
            raise CheckpointError(f"{kind} of {name} cannot be read")
        self.left = None if self.left is None else self.left - 1
        return self._checkpoint.read(kind, name, start, length)


def _restore(folder: Path, options: dict, failing: int, ranks: TorchRanks) -> list[str]:
    """Return the messages of failures at the first, a later and no read; the last attempt must succeed."""
    config = tiny_config(folder, engine={"precision": "fp32", **options}, batch={"global_size": 4, "micro_size": 2})
    torch.manual_seed(0)
    engine = build_engine(Line(), config, ranks)
    x = torch.ones(2, 7)
    engine.backward(engine(x))
    engine.step()
    place = folder / f"zero{options['zero_stage']}-{len(options)}"
    writer = CheckpointWriter(place, keep=1, ranks=ranks, timeout_minutes=1)
    writer.save(engine, step=1, samples_seen=4, identity={"name": "line"})
    writer.wait()
    checkpoint = latest(place, ranks)
    assert checkpoint is not None
    messages = []
    for fails_after in (0, 2, None):
        reads = _Reads(checkpoint, fails_after=fails_after if ranks.rank == failing else None)
        try:
            write_fragments(engine, reads, ranks, step=1, warm_up=lambda: engine(x))
        except SimcastError as error:
            messages.append(str(error))
    assert ranks.gather(ranks.rank) == [0, 1], "the ranks are at the same collective"
    return messages


def _damaged(folder: Path, ranks: TorchRanks) -> str:
    """Return the message for a share that only rank 1 verifies and cannot open."""
    share = sorted((folder / "zero1-1" / "step-00000001").glob("rank-*.safetensors"))[1]
    ranks.gather(None)
    if ranks.is_first:
        share.unlink()
        share.mkdir()
    ranks.gather(None)
    try:
        newest_intact(folder / "zero1-1", ranks)
    except SimcastError as error:
        return str(error)
    return "no error"


def main(folder: Path) -> None:
    """Run all cases."""
    ranks = join_process_group(timeout_minutes=1)
    found = [_restore(folder, options, failing, ranks) for options, failing in CASES]
    messages = {"restore": found, "damaged": _damaged(folder, ranks)}
    (folder / f"messages-{ranks.rank}.json").write_text(json.dumps(messages), encoding="utf-8")
    ranks.leave()
    end_rank(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
