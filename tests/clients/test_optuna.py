"""Optuna tunes q and the learning rate of each chain, and prunes."""

import optuna
import pytest
import torch
from job import CHAINS, IMAGES, LABELS, Apart, batches, network, optimizer
from torch.nn.functional import cross_entropy

optuna.logging.set_verbosity(optuna.logging.ERROR)


def losses(net, optim, epochs=3):
    """The loss after each epoch."""
    for _ in range(epochs):
        for x, y in batches():
            optim.zero_grad()
            cross_entropy(net(x), y).backward()
            optim.step()
        with torch.no_grad():
            yield cross_entropy(net(IMAGES), LABELS).item()


@pytest.mark.parametrize("chain", CHAINS)
def test_the_best_of_a_study_is_what_the_loop_by_hand_has(chain, outcome):
    def objective(trial):
        net = network()
        lr = trial.suggest_float("lr", 1e-3, 1.0, log=True)
        optim = optimizer(chain, net.parameters(), InnerOpt=torch.optim.SGD, lr=lr)
        (group,) = optim.param_groups
        for key in [k for k in group if k == "q" or k.endswith(".q")]:
            group[key] = trial.suggest_float(key, 0.1, 0.9)
        for epoch, loss in enumerate(losses(net, optim)):
            trial.report(loss, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return loss

    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=2),
    )
    study.optimize(objective, n_trials=4)
    study.optimize(objective, n_trials=4)  # goes on
    states = {trial.state for trial in study.trials}
    assert states == {optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED}
    best = study.best_trial.params
    net = network()
    inner = {"InnerOpt": torch.optim.SGD, "lr": best.pop("lr")}
    by_hand = Apart(chain, net.parameters(), inner, list(best.values()))
    assert study.best_value == list(losses(net, by_hand))[-1]
    outcome("Optuna: q and lr, pruning", chain, "equal bits")
