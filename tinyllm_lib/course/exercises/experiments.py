"""Exercises of notebook 09: each trains something, and is checked by what it reaches."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F

from tinyllm_lib.course import experiments, get_profile, get_workspace
from tinyllm_lib.course.exercises.exercise import NotDone, NotYet, done, exercise, require
from tinyllm_lib.dataset import DataOrder, collate

SETUP = """
import torch
import torch.nn.functional as F

from tinyllm_lib.course import experiments, get_profile, get_workspace
from tinyllm_lib.course.exercises import check_exercise
from tinyllm_lib.train import get_lr

profile = get_profile()
data = experiments.load_data(get_workspace(profile), profile)
"""
STEPS = 40  # of each run that a check makes, at every profile
REPAIRED = 0.25  # nats per token: how far a repaired loop may lie behind the library's
ALIKE = 0.5  # nats per token: how far an exchanged part may lie behind SwiGLU
GAIN = 0.3  # nats per token by which a better config must be better, on each seed
PLAIN = {"learning_rate": 1e-3, "batch_size": 16, "steps": 20, "warmup_steps": 2}
FREE = {
    *("dim", "n_layers", "n_heads", "n_kv_heads", "batch_size", "steps", "learning_rate"),
    *("warmup_steps", "min_lr_share", "weight_decay", "grad_clip"),
}


def _data_and_config(**changes):
    profile = get_profile()
    data = experiments.load_data(get_workspace(profile), profile)
    return data, experiments.base_config(profile, **{"steps": STEPS, **changes})


@exercise('''
09.1 Repair the loop (20 minutes, medium)

This loop runs, returns a list of losses, and teaches the model next to nothing. It has three
faults: two lines are wrong and one is missing. (Clipping and weight decay are not among them.)
Copy it, mend it, and call the copy `repaired`. It is called with a new model, a list of batches and
a `TrainConfig`, whose schedule `get_lr(step, config)` gives (`from tinyllm_lib.train import
get_lr`). The check trains with it for 40 steps and scores the model on validation rows, beside the
library with `optimizer="adamw"`. Two repairs of the three are not enough.

# hint:
Ask of each line what notebook 05 has there. What does the model predict at a position? What is in
`p.grad` before `backward`? Print the rate of the last step.

# code for repaired:
def sabotaged(model, batches, config):
    """Trains on each batch once; returns the losses."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95))
    losses = []
    for step, batch in enumerate(batches):
        weights = batch.loss_mask / batch.loss_mask.sum()
        where = {"position_ids": batch.position_ids, "document_ids": batch.document_ids}
        loss = model.weighted_nll(batch.X, batch.X, weights, **where)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * (step + 1)
        optimizer.step()
        losses.append(loss.item())
    return losses


# stub:
repaired = None  # your turn: a copy of the loop above, mended
# solution:
def repaired(model, batches, config):
    """Trains on each batch once; returns the losses."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95))
    losses = []
    for step, batch in enumerate(batches):
        weights = batch.loss_mask / batch.loss_mask.sum()
        where = {"position_ids": batch.position_ids, "document_ids": batch.document_ids}
        loss = model.weighted_nll(batch.X, batch.Y, weights, **where)  # the next token
        optimizer.zero_grad()  # or the gradients of all steps add up
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = get_lr(step, config)  # which ends its warm-up, and falls
        optimizer.step()
        losses.append(loss.item())
    return losses
''')
def _check_repaired(repaired) -> str:
    done(repaired)
    data, config = _data_and_config(optimizer="adamw")
    library = experiments.short_run(data, config).val_loss
    order = DataOrder(len(data.train), config.seed)
    steps = [order.step_rows(step, config.batch_size) for step in range(config.steps)]
    batches = [collate([data.train[i] for i in rows]) for rows in steps]
    model = experiments.make_model(data, config)
    before = experiments.validate(model, data, config)
    repaired(model, batches, config)
    after = experiments.validate(model, data, config)
    require(math.isfinite(after), "the validation loss is no number any more: look at the rate")
    require(after != before, "the model is as it was before: does the loop step its optimiser?")
    copies = experiments.validate(model, data, config, experiments.own_target)
    reached = f"validation loss {after:.2f}, the library's loop reaches {library:.2f}"
    require(
        copies > after / 2, f"{reached}: it writes what it has just read. What are its targets?"
    )
    require(
        after < library + REPAIRED,
        f"{reached}. Something is left: when are gradients set back, and which rate has step 39?",
    )
    return f"{reached}. What fell before was the loss of another, easier problem."


@exercise('''
09.2 Exchange a part (20 minutes, medium)

Another MLP of recent models is `down(relu(up(x))²)`: two matrices, and the square of a ReLU between
them ([So and others, 2021](https://arxiv.org/abs/2109.08668)). Write `relu_squared(model)`, which
puts such a module in the place of `block.mlp` in every block of `model.model.layers`. Call its
matrices `up_proj` and `down_proj`, give both together as many weights as the three of SwiGLU have,
and let them start with the same spreads. The check trains 40 steps with it.

# hint:
`print(inspect.getsource(experiments.parts.GeluMLP))` shows the class that "GELU for SwiGLU" uses.
Copy it, write `torch.nn` for `nn`, and change one line in `forward`: a ReLU is `torch.relu`.

# code for relu_squared:
# stub:
def relu_squared(model):
    """Exchanges the MLP of every block, in place."""
    return None  # your turn
# solution:
class SquaredReLU(torch.nn.Module):
    """down(relu(up(x))²), with as many weights as the SwiGLU that it replaces."""

    def __init__(self, swiglu):
        super().__init__()
        hidden, dim = swiglu.up_proj.weight.shape
        self.up_proj = torch.nn.Linear(dim, 3 * hidden // 2, bias=False)
        self.down_proj = torch.nn.Linear(3 * hidden // 2, dim, bias=False)
        torch.nn.init.normal_(self.up_proj.weight, std=swiglu.up_proj.weight.std().item())
        torch.nn.init.normal_(self.down_proj.weight, std=swiglu.down_proj.weight.std().item())

    def forward(self, x):
        return self.down_proj(F.relu(self.up_proj(x)) ** 2)


def relu_squared(model):
    """Exchanges the MLP of every block, in place."""
    for block in model.model.layers:
        block.mlp = SquaredReLU(block.mlp)
''')
def _check_relu_squared(relu_squared) -> str:
    data, config = _data_and_config()
    as_it_is = experiments.make_model(data, config)
    model = experiments.make_model(data, config, relu_squared)
    kinds = [type(block.mlp) for block in as_it_is.model.layers]
    changed = [type(block.mlp) not in kinds for block in model.model.layers]
    if not any(changed):
        raise NotDone
    require(all(changed), f"{sum(changed)} of {len(changed)} blocks have a new MLP")
    for block in model.model.layers:
        for name in ("up_proj", "down_proj"):
            require(hasattr(block.mlp, name), f"a block's new MLP has no {name}")
    off = model.num_parameters() - as_it_is.num_parameters()
    words = "more" if off > 0 else "fewer"
    require(off == 0, f"{abs(off):,} weights {words} than with SwiGLU: how wide is it between?")
    x = torch.randn(3, config.dim)
    mlp = model.model.layers[0].mlp
    with torch.no_grad():
        wanted = F.linear(F.relu(F.linear(x, mlp.up_proj.weight)) ** 2, mlp.down_proj.weight)
        require(torch.allclose(mlp(x), wanted, atol=1e-6), "this is not down(relu(up(x))²)")
    swiglu = experiments.short_run(data, config).val_loss
    found = experiments.short_run(data, config, change=relu_squared).val_loss
    reached = f"after {STEPS} steps validation is {found:.3f}, with SwiGLU {swiglu:.3f}"
    require(found < swiglu + ALIKE, f"{reached}: how large are the new weights at the start?")
    return f"{reached}. One seed and few steps: no verdict yet."


@exercise("""
09.3 The same compute, a better model (25 minutes, hard)

The dictionary `plain` makes a run of the small model that is not good. Find changes that bring its
validation loss down by 0.3 nats on both of the seeds 0 and 1, without more compute: steps times
rows times FLOPs per token may not grow. Open to you are `learning_rate`, `batch_size`, `steps`,
`warmup_steps`, `min_lr_share`, `weight_decay`, `grad_clip`, `dim`, `n_layers`, `n_heads` and
`n_kv_heads`. Write down what you expect before each run.

# hint:
`experiments.short_run(data, experiments.base_config(profile, **plain)).val_loss` says where you
start, and of a config `c` the FLOPs per token are `experiments.shape_of(c, vocabulary)[1]`. One
number alone is enough. Which one was 10 times as large in section 1? And how many steps does a run
have that reads a quarter of the rows in each?

# code for my_changes:
plain = {"learning_rate": 1e-3, "batch_size": 16, "steps": 20, "warmup_steps": 2}
# stub:
my_changes = None  # your turn: {**plain, "learning_rate": …}
# solution:
my_changes = {**plain, "learning_rate": 1e-2, "batch_size": 4, "steps": 80, "warmup_steps": 8}
""")
def _check_better(my_changes) -> str:
    done(my_changes)
    if unknown := sorted(set(my_changes) - FREE):
        raise NotYet(f"{', '.join(unknown)} is not open: the text has the list")
    data, before = _data_and_config(**PLAIN)
    _, after = _data_and_config(**{**PLAIN, **my_changes})

    def cost(config) -> float:
        _, per_token = experiments.shape_of(config, len(data.tokenizer))
        return per_token * config.steps * config.batch_size * config.max_seq_len

    share = cost(after) / cost(before)
    require(share <= 1.001, f"this takes {share:.2f} times the compute of `plain`")
    gains = []
    for seed in (0, 1):
        runs = [experiments.short_run(data, replace(c, seed=seed)) for c in (before, after)]
        gains.append(runs[0].val_loss - runs[1].val_loss)
    told = f"better by {gains[0]:.2f} and {gains[1]:.2f} nats (two seeds)"
    require(min(gains) >= GAIN, f"{told}; 0.3 on each is asked for")
    return f"{told}, at {share:.0%} of the compute."
