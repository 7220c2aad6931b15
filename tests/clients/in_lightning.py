"""PyTorch Lightning and its Fabric."""

import functools
import logging
from typing import Any

import lightning
import torch
from job import Client, batches, falling, network, optimizer
from lightning.pytorch.callbacks import BaseFinetuning, Callback, StochasticWeightAveraging
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import SWALR

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Module(lightning.LightningModule):
    def __init__(self, chain, scheduled=False, manual=False):
        super().__init__()
        self.net, self.chain, self.scheduled = network(), chain, scheduled
        self.automatic_optimization = not manual

    def training_step(self, batch, i):
        x, y = batch
        loss = cross_entropy(self.net(x), y)
        if not self.automatic_optimization:
            optim = self.optimizers()
            optim.zero_grad()
            self.manual_backward(loss)
            optim.step()
        return loss

    def configure_optimizers(self):
        optim = optimizer(self.chain, [p for p in self.parameters() if p.requires_grad])
        if not self.scheduled:
            return optim
        return {
            "optimizer": optim,
            "lr_scheduler": {"scheduler": falling(optim), "interval": "step"},
        }


class Half(Callback):
    """Saves a checkpoint in the middle."""

    def __init__(self, file, epochs):
        self.file, self.epochs = file, epochs

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch + 1 == self.epochs:
            trainer.save_checkpoint(self.file)


def fit(module, epochs, callbacks, options, **more):
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=callbacks,
        **options,
    )
    trainer.fit(module, batches(), **more)
    return trainer


def run(chain, folder, resume, *, half=1, epochs=2, callbacks=list, module=None, **options):
    file, net = folder / "half.ckpt", Module(chain, **(module or {}))
    fit(net, epochs, [*callbacks(), Half(file, half)], options)
    if resume:
        net = Module(chain, **(module or {}))
        fit(net, epochs, callbacks(), options, ckpt_path=file)
    return net.net


class Unfreeze(BaseFinetuning):
    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.net[0])

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[0], optimizer, lr=0.05)
        elif epoch > 1:  # of a run that goes on: the callback restores the group alone
            self.make_trainable(pl_module.net[0])


def unfreeze(epoch, net, optim):
    if epoch == 1:
        net[0].requires_grad_(True)
        optim.add_param_group({"params": list(net[0].parameters()), "lr": 0.05})


class Average:
    """What the callback does: the mean of the weights at the starts of epochs 1 and 2."""

    def __call__(self, epoch, net, optim):
        if epoch == 0:
            self.seen = []
        elif epoch < 3:
            if epoch == 1:
                for group in optim.inner.param_groups:
                    group["initial_lr"] = 0.05
                self.schedule = SWALR(optim.inner, [0.05], anneal_epochs=10, last_epoch=3)
            else:
                self.schedule.step()
            self.seen.append([p.detach().clone() for p in net.parameters()])
        else:
            first, second = self.seen
            with torch.no_grad():
                for p, a, b in zip(net.parameters(), first, second, strict=True):
                    p.copy_(a + (b - a) / torch.tensor(2))


def fabric(chain, folder, resume):
    from lightning.fabric import Fabric

    def begin():
        own = Fabric(accelerator="cpu", devices=1)
        net = network()
        net, optim = own.setup(net, optimizer(chain, net.parameters()))
        return own, net, optim

    own, net, optim = begin()
    for epoch in range(2):
        for x, y in own.setup_dataloaders(batches()):
            own.backward(cross_entropy(net(x), y))
            own.clip_gradients(net, optim, max_norm=0.5)
            optim.step()
            optim.zero_grad()
        if resume and epoch == 0:
            own.save(folder / "half", {"net": net, "optim": optim})
            own, net, optim = begin()
            own.load(folder / "half", {"net": net, "optim": optim})
    return net.module


def client(hand: Any = None, **options: Any) -> Client:
    return Client(functools.partial(run, **options), hand or {})


CLIENTS = {
    "Lightning, automatic: scheduler, clipping, accumulation": client(
        {"accumulate": 2, "clip": 0.5, "scheduled": True},
        gradient_clip_val=0.5,
        accumulate_grad_batches=2,
        module={"scheduled": True},
    ),
    "Lightning, manual": client(module={"manual": True}),
    "Lightning, bf16-mixed": client({"bf16": True}, precision="bf16-mixed"),
    "Lightning, BaseFinetuning": client(
        {"epochs": 3, "begin": unfreeze, "freeze": True, "adapter": optimizer},
        epochs=3,
        half=2,
        callbacks=lambda: [Unfreeze()],
    ),
    "Lightning, StochasticWeightAveraging": client(
        {"epochs": 3, "begin": Average()},
        epochs=3,
        callbacks=lambda: [StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2)],
    ),
    "Fabric: clipping": Client(fabric, {"clip": 0.5}),
}
