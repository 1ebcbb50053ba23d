"""Tests of featx.heads.stack: its gradients are autograd's, its updates torch.optim's."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from featx.heads import LinearHead, MLPHead
from featx.heads.rows import shuffled
from featx.heads.stack import Dropout, Stack, cross_entropy


def generators(n):
    return [torch.Generator().manual_seed(seed) for seed in range(n)]


def double(stack):
    """The same networks in float64, with weights and biases that are nowhere 0."""
    draw = torch.Generator().manual_seed(9)
    tensors = [
        [t.double() + 0.1 * torch.randn(t.shape, generator=draw) for t in of]
        for of in (stack.weights, stack.biases)
    ]
    return Stack(*tensors)


@pytest.mark.parametrize("hidden", [(), (7,), (7, 5)])
@pytest.mark.parametrize("g", [1, 3])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradients_are_autograds(hidden, g, shared, smoothing):
    stack = double(Stack.drawn((6, *hidden, 4), generators(g), "cpu"))
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(10, 6, generator=draw).double()
    y = torch.randint(4, (10,), generator=draw)
    if not shared:
        x = torch.stack([x + i for i in range(g)])
        y = torch.stack([(y + i) % 4 for i in range(g)])
    units = Dropout(0.4, hidden, range(g)).units(x.device)
    thinned = stack.thinned(units)
    logits, inputs = thinned.forward(x, dtype=torch.float64)
    losses, delta = cross_entropy(logits, y, smoothing)
    thinned.backward(inputs, delta, dtype=torch.float64)
    for gradient in (*stack.weight_grads, *stack.bias_grads):
        gradient.fill_(7)  # of the step before
    stack.take_gradients(thinned, units)
    masks = [torch.zeros(g, n).double() for n in hidden]
    for mask, kept in zip(masks, units, strict=True):
        mask.scatter_(1, kept, mask.shape[1] / kept.shape[1])
    for i in range(g):
        weights, biases = ([t.requires_grad_() for t in of] for of in stack.network(i))
        z = x if shared else x[i]
        target = y if shared else y[i]
        for layer, (W, b) in enumerate(zip(weights, biases, strict=True)):
            z = z if not layer else functional.relu(z) * masks[layer - 1][i]
            z = functional.linear(z, W, b)
        functional.cross_entropy(z, target, label_smoothing=smoothing).backward()
        assert torch.allclose(logits[i], z, rtol=1e-12)
        plain = functional.cross_entropy(z, target, reduction="none")
        assert torch.allclose(losses[i], plain, rtol=1e-12)
        for ours, theirs in zip(stack.weight_grads, weights, strict=True):
            assert torch.allclose(ours[i], theirs.grad, rtol=1e-10, atol=1e-14)
        for ours, theirs in zip(stack.bias_grads, biases, strict=True):
            assert torch.allclose(ours[i, 0], theirs.grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("dtype", "close"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_gradients_in_low_precision_are_near_and_do_not_overflow(dtype, close):
    x = 60 * torch.ones(4096, 3) + torch.randn(4096, 3, generator=generators(1)[0])
    y = torch.zeros(4096, dtype=torch.int64)
    gradients = []
    for precision in (torch.float32, dtype):
        stack = Stack.drawn((3, 5, 4), generators(2), "cpu")
        stack.weights[-1] += 0.01
        logits, inputs = stack.forward(x, dtype=precision)
        _, delta = cross_entropy(logits, y, 0.0)
        stack.backward(inputs, delta, dtype=precision)
        gradients.append(torch.cat([t.flatten() for t in stack.weight_grads + stack.bias_grads]))
    exact, low = gradients
    assert torch.isfinite(low).all()
    assert (low - exact).norm() < close * exact.norm()


@pytest.mark.parametrize(
    ("rate", "kept"), [(1e-4, (10, 7)), (0.2, (8, 6)), (0.5, (5, 4)), (0.999, (1, 1))]
)
def test_dropout_keeps_whole_units_of_each_layer_as_often_as_others(rate, kept):
    dropout = Dropout(rate, (10, 7), [0])
    times = [torch.zeros(10), torch.zeros(7)]
    for _ in range(1000):
        units = dropout.units(torch.device("cpu"))
        for counts, layer, n in zip(times, units, kept, strict=True):
            assert layer.shape == (1, n)
            assert (layer[0].diff() > 0).all()
            counts[layer[0]] += 1
    for counts, n in zip(times, kept, strict=True):
        share = n / len(counts)
        assert (counts / 1000 - share).abs().max() < 0.07  # more than 4 standard deviations


def test_each_network_draws_its_units_by_its_own_seed():
    cpu = torch.device("cpu")
    together, alone = Dropout(0.3, (100,), [0, 1]), Dropout(0.3, (100,), [1])
    (both,), (one,) = together.units(cpu), alone.units(cpu)
    assert torch.equal(both[1], one[0])
    assert not torch.equal(both[0], both[1])
    together.only([1])
    (later,), (same,) = together.units(cpu), alone.units(cpu)
    assert torch.equal(later, same)
    assert not torch.equal(later, one)


def test_hidden_layers_start_as_he_et_al_and_the_last_at_0():
    stack = Stack.drawn((50, 400, 3), generators(2), "cpu")
    assert stack.weights[0].abs().max() == pytest.approx((6 / 50) ** 0.5, rel=1e-3)
    assert not stack.weights[1].any()
    assert not any(bias.any() for bias in stack.biases)
    assert not torch.equal(stack.weights[0][0], stack.weights[0][1])


def plain_loop(network, optimizer, X, y, *, epochs, smoothing, cosine):
    """What everyone writes, with the batches of seed 0: the losses by epoch."""
    generator = torch.Generator().manual_seed(0)
    sizes = [network[0].in_features, *(layer.out_features for layer in network[::2])]
    Stack.drawn(sizes, [generator], "cpu")  # takes its draws
    n_steps = 6 * -(-len(X) // 64)  # of all epochs that were asked for
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    losses = []
    for _ in range(epochs):
        total = 0.0
        for which in torch.cat(list(shuffled(len(X), X.shape[1], generator))).split(64):
            logits = network(X[which])
            loss = functional.cross_entropy(logits, y[which], label_smoothing=smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if cosine:
                schedule.step()
            total += functional.cross_entropy(logits, y[which], reduction="sum").item()
        losses.append(total / len(X))
    return losses


@pytest.mark.parametrize(
    ("head", "kind", "settings"),
    [
        (LinearHead(weight_decay=0.01), torch.optim.Adam, {"lr": 1e-3}),
        (LinearHead(schedule="cosine", lr=0.02), torch.optim.Adam, {"lr": 0.02}),
        (
            LinearHead(optimizer="sgd", weight_decay=0.01, schedule="cosine"),
            torch.optim.SGD,
            {"lr": 0.01, "momentum": 0.9},
        ),
        (MLPHead((9, 6), dropout=0.0, label_smoothing=0.1), torch.optim.AdamW, {"lr": 1e-3}),
    ],
    ids=["adam", "adam cosine", "sgd", "mlp"],
)
def test_a_head_comes_to_what_a_plain_torch_loop_comes_to(head, kind, settings):
    rng = np.random.default_rng(0)
    y = np.arange(150) % 3
    X = rng.normal(size=(150, 8)) + rng.normal(size=(3, 8))[y]
    head.set_params(epochs=6, standardise=False, patience=None, device="cpu")
    head.fit(X, y, X_val=X, y_val=y)
    drawn = Stack.drawn((8, *head._hidden_sizes(), 3), generators(1), "cpu")
    layers = []
    for W, b in zip(*drawn.network(0), strict=True):
        layers += [torch.nn.Linear(*W.shape[::-1]), torch.nn.ReLU()]
        layers[-2].load_state_dict({"weight": W, "bias": b})
    network = torch.nn.Sequential(*layers[:-1])
    named = list(network.parameters())
    groups = [
        {"params": [p for p in named if p.ndim > 1], "weight_decay": head.weight_decay},
        {"params": [p for p in named if p.ndim == 1], "weight_decay": 0.0},
    ]
    losses = plain_loop(
        network,
        kind(groups, **settings),
        torch.tensor(X, dtype=torch.float32),
        torch.tensor(y),
        epochs=head.best_epoch_,  # the weights kept are of this epoch
        smoothing=head.label_smoothing,
        cosine=head.get_params().get("schedule") == "cosine",
    )
    history = [row["train_loss"] for row in head.history_[: head.best_epoch_]]
    assert history == pytest.approx(losses, rel=1e-5)
    for i, layer in enumerate(network[::2]):
        assert np.allclose(head.coefs_[i], layer.weight.detach(), rtol=1e-4, atol=1e-6)
        assert np.allclose(head.intercepts_[i], layer.bias.detach(), rtol=1e-4, atol=1e-6)
