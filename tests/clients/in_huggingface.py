"""Hugging Face Accelerate and Trainer."""

import functools

import torch
from accelerate import Accelerator
from job import SGD, Client, batches, data, falling, network, optimizer
from schedulefree import AdamWScheduleFree
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainingArguments


def accelerate(chain, folder, resume):
    def begin():
        own = Accelerator(cpu=True, gradient_accumulation_steps=2)
        net = network()
        optim = optimizer(chain, net.parameters())
        return own, *own.prepare(net, optim, batches(), falling(optim))

    own, net, optim, loader, schedule = begin()
    for epoch in range(2):
        for x, y in loader:
            with own.accumulate(net):
                own.backward(cross_entropy(net(x), y))
                if own.sync_gradients:
                    own.clip_grad_norm_(net.parameters(), 0.5)
                optim.step()
                schedule.step()
                optim.zero_grad()
        if resume and epoch == 0:
            own.save_state(str(folder / "half"))
            own, net, optim, loader, schedule = begin()
            own.load_state(str(folder / "half"))
    return own.unwrap_model(net)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x, labels):
        return {"loss": cross_entropy(self.net(x), labels)}


def collate(rows):
    return {"x": torch.stack([x for x, _ in rows]), "labels": torch.stack([y for _, y in rows])}


def trainer(chain, folder, resume, inner=SGD, scheduled=True):
    def begin():
        model = Model()
        arguments = TrainingArguments(
            str(folder),
            num_train_epochs=2,
            per_device_train_batch_size=64,
            max_grad_norm=0.5,
            train_sampling_strategy="sequential",
            use_cpu=True,
            save_strategy="epoch",
            eval_strategy="epoch",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        optim = optimizer(chain, model.parameters(), **inner)
        schedule = falling(optim) if scheduled else LambdaLR(optim, lambda i: 1.0)
        return model, Trainer(
            model,
            arguments,
            train_dataset=data(),
            eval_dataset=data(),
            data_collator=collate,
            optimizers=(optim, schedule),
        )

    model, own = begin()
    own.train()
    if resume:
        model, own = begin()
        own.train(resume_from_checkpoint=str(folder / "checkpoint-8"))
    if not scheduled:  # evaluate at the averaged weights
        own.evaluate()
    return model.net


FREE = {"InnerOpt": AdamWScheduleFree, "lr": 0.01, "warmup_steps": 4}


def modes(epoch, net, optim):
    """Each epoch ends with an evaluation, at the averaged weights."""
    if epoch > 0:
        optim.inner.eval()
    if epoch < 2:
        optim.inner.train()


CLIENTS = {
    "Accelerate: scheduler, clipping, accumulation": Client(
        accelerate, {"accumulate": 2, "clip": 0.5, "scheduled": True}
    ),
    "Trainer: scheduler, clipping": Client(trainer, {"clip": 0.5, "scheduled": True}),
    "Trainer: schedule-free": Client(
        functools.partial(trainer, inner=FREE, scheduled=False),
        {"clip": 0.5, "inner": FREE, "begin": modes},
    ),
}
