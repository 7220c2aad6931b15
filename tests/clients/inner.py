"""Optimizers of others inside the chain: timm, pytorch_optimizer, schedule-free, in 8 bits."""

import functools
import importlib.util
import sys
import types

import bitsandbytes
import pytorch_optimizer
import schedulefree
import torch
import torchao.optim
from job import Client, batches, network, optimizer
from torch.nn.functional import cross_entropy


def timm_optim():
    """timm's optimizers without its models, which need torchvision and so another torch."""
    package, models = types.ModuleType("timm"), types.ModuleType("timm.models")
    package.__path__ = list(importlib.util.find_spec("timm").submodule_search_locations)
    models.group_parameters = None
    sys.modules |= {"timm": package, "timm.models": models}
    return importlib.import_module("timm.optim")


def run(chain, folder, resume, inner):
    def begin():
        net = network()
        optim = optimizer(chain, net.parameters(), **inner)
        start_training(0, net, optim)
        return net, optim

    net, optim = begin()
    for epoch in range(2):
        for x, y in batches():
            optim.zero_grad()
            cross_entropy(net(x), y).backward()
            optim.step()
        if resume and epoch == 0:
            torch.save({"net": net.state_dict(), "optim": optim.state_dict()}, folder / "half")
            net, optim = begin()
            saved = torch.load(folder / "half", weights_only=True)
            net.load_state_dict(saved["net"])
            optim.load_state_dict(saved["optim"])
    return net


def start_training(epoch, net, optim):
    """For schedule-free optimizers, which have a mode."""
    optim = getattr(optim, "inner", optim)
    if hasattr(optim, "train"):
        optim.train()


def client(kind):
    inner = {"InnerOpt": kind, "lr": 0.01}
    return Client(functools.partial(run, inner=inner), {"inner": inner, "begin": start_training})


KINDS = {
    "timm": (
        timm_optim(),
        "AdaBelief Adafactor AdafactorBigVision AdamP Adan Adopt Lamb LaProp Lars Lion MADGRAD "
        "Mars Muon NAdamW NvNovoGrad RMSpropTF SGDP SGDW",
    ),
    "pytorch_optimizer": (
        pytorch_optimizer,
        "AdaBelief AdEMAMix ADOPT Amos CAME DiffGrad Fromage Grams Lion MADGRAD PAdam Prodigy "
        "QHAdam ScheduleFreeAdamW SOAP StableAdamW Tiger Yogi",
    ),
    "schedulefree": (schedulefree, "SGDScheduleFree AdamWScheduleFree RAdamScheduleFree"),
    "torchao": (torchao.optim, "AdamW8bit AdamW4bit AdamWFp8"),
    "bitsandbytes": (bitsandbytes.optim, "AdamW8bit Lion8bit"),
}
CLIENTS = {
    f"{family} {name}": client(getattr(module, name))
    for family, (module, names) in KINDS.items()
    for name in names.split()
}
