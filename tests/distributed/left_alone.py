"""Two ranks select from what they share: `python left_alone.py RANK FOLDER SIGNAL`.

Rank 1 sends itself a signal after three steps; how many each took is in `FOLDER/steps.<rank>`.
"""

import datetime
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

import rai_chain as rc

if __name__ == "__main__":
    rank, folder, end = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    store = dist.FileStore(str(folder / "store"), 2)
    timeout = datetime.timedelta(seconds=5)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timeout)
    shard = DTensor.from_local(
        torch.arange(500.0) + rank, init_device_mesh("cpu", (2,)), [Shard(0)]
    )
    tx = rc.top_q(0.9, param_ndim=None)
    for step in range(5):
        if step == 3 and rank == 1:
            os.kill(os.getpid(), end)
        tx.update([shard], tx.init([shard]))
        (folder / f"steps.{rank}").write_text(str(step + 1))
