"""skorch, Opacus, TorchOpt's meta optimizer."""

from functools import partial

import opacus
import skorch
import torch
import torchopt
from job import (
    CHAINS,
    IMAGES,
    LABELS,
    SGD,
    Apart,
    Client,
    batches,
    network,
    optimizer,
    values,
)
from torch import nn
from torch.nn.functional import cross_entropy

import rai_chain as rc
from rai_chain.optim import ChainedParamTransformingOptimizer


def with_skorch(chain, folder, resume):
    def begin():
        net = skorch.NeuralNetClassifier(
            network(),
            criterion=nn.CrossEntropyLoss,
            optimizer=partial(ChainedParamTransformingOptimizer, *CHAINS[chain]()),
            optimizer__InnerOpt=torch.optim.SGD,
            optimizer__momentum=0.9,
            lr=0.1,
            batch_size=64,
            iterator_train__shuffle=False,
            train_split=None,
            verbose=0,
        )
        return net.initialize()

    net = begin()
    for epoch in range(2):
        net.partial_fit(IMAGES, LABELS, epochs=1)
        if resume and epoch == 0:
            names = {"f_params": folder / "net", "f_optimizer": folder / "optim"}
            net.save_params(**names)
            net = begin()
            net.load_params(**names)
    return net.module_


def private(net, optim, generator):
    return opacus.PrivacyEngine().make_private(
        module=net,
        optimizer=optim,
        data_loader=batches(),
        noise_multiplier=0.5,
        max_grad_norm=1.0,
        poisson_sampling=False,
        noise_generator=generator,
    )


def with_opacus(chain, folder, resume):
    def begin():
        net = network()
        generator = torch.Generator().manual_seed(5)
        return (generator, *private(net, optimizer(chain, net.parameters()), generator))

    generator, net, optim, loader = begin()
    for epoch in range(2):
        for x, y in loader:
            optim.zero_grad()
            cross_entropy(net(x), y).backward()
            optim.step()
        if resume and epoch == 0:
            saved = net.state_dict(), optim.state_dict(), generator.get_state()
            torch.save(saved, folder / "half")
            generator, net, optim, loader = begin()
            a, b, c = torch.load(folder / "half", weights_only=True)
            net.load_state_dict(a)
            optim.load_state_dict(b)
            generator.set_state(c)
    return net._module


def opacus_by_hand(chain):
    """Opacus makes the gradients, the chain by hand takes the step."""
    net = network()
    plain = torch.optim.SGD(net.parameters(), lr=0.1)
    private_net, optim, loader = private(net, plain, torch.Generator().manual_seed(5))
    own = Apart(chain, net.parameters(), SGD)
    for _ in range(2):
        for x, y in loader:
            optim.zero_grad()
            cross_entropy(private_net(x), y).backward()
            optim.pre_step()
            own.step()
    return values(net)


def pipeline(chain):
    """The pure chain that descends, its set at the end."""
    parts = CHAINS[chain]()
    sets = [part for part in parts if getattr(part, "phase", "") == "parameter"]
    return rc.chain(*[part for part in parts if part not in sets], rc.scale(-0.1), *sets)


def with_torchopt(chain, folder, resume):
    def begin():
        net = network()
        return net, torchopt.MetaOptimizer(net, pipeline(chain))

    net, optim = begin()
    for epoch in range(2):
        for x, y in batches():
            optim.step(cross_entropy(net(x), y))
            torchopt.stop_gradient((net, optim))  # else the graph of all steps is kept
        if resume and epoch == 0:
            torch.save((net.state_dict(), optim.state_dict()), folder / "half")
            net, optim = begin()
            a, b = torch.load(folder / "half", weights_only=True)
            net.load_state_dict(a)
            optim.load_state_dict(b)
    return net


def torchopt_by_hand(chain):
    """TorchOpt has biases before weights, and adds updates."""
    net, tx = network(), pipeline(chain)
    params = [net[0].bias, net[0].weight, net[2].bias, net[2].weight]
    state = tx.init([p.detach() for p in params])
    for _ in range(2):
        for x, y in batches():
            net.zero_grad()
            cross_entropy(net(x), y).backward()
            with torch.no_grad():
                updates, state = tx.update([p.grad for p in params], state, params)
                for p, update in zip(params, updates, strict=True):
                    p += update
    return values(net)


NO_LINK = "a class of optimizers is no link of a pure pipeline"


CLIENTS = {
    "skorch": Client(with_skorch),
    "Opacus": Client(with_opacus, reference=opacus_by_hand),
    "TorchOpt, MetaOptimizer": Client(
        with_torchopt,
        reference=torchopt_by_hand,
        refused={"dq, generator": NO_LINK, "together": NO_LINK},
    ),
}
