"""The guide on raw checkpoints: its commands run and print what it shows."""

import torch
from pages import carry_out
from safetensors.torch import load_file


def network(seed, steps):
    draw = torch.Generator().manual_seed(seed)
    weights = {f"encoder.{layer}.weight": torch.randn(8, 8, generator=draw) for layer in range(2)}
    return {**weights, "encoder.norm.num_batches_tracked": torch.tensor(steps)}


def write_runs(folder):
    """Two checkpoints of a training with its optimizer, the second from several devices; and one with a head."""
    folder.mkdir()
    for epoch, prefix in ((3, ""), (5, "module.")):
        state = {prefix + name: tensor for name, tensor in network(epoch, 100 * epoch).items()}
        optimizer = {"state": {0: {"exp_avg": torch.zeros(8, 8)}}, "param_groups": [{"lr": 0.1}]}
        torch.save({"epoch": epoch, "model": state, "optimizer": optimizer}, folder / f"epoch-{epoch}.ckpt")
    head = {"head.weight": torch.ones(2, 8), "head.bias": torch.zeros(2)}
    torch.save({**network(7, 700), **head}, folder / "with-head.pt")


def test_its_commands_run_and_say_what_it_shows(tmp_path):
    write_runs(tmp_path / "runs")
    assert len(carry_out("guides/raw-checkpoints.md", tmp_path)) == 4
    averaged = load_file(tmp_path / "averaged.safetensors")
    name = "encoder.0.weight"
    assert torch.allclose(averaged[name], 0.4 * network(3, 0)[name] + 0.6 * network(5, 0)[name])
    assert averaged["encoder.norm.num_batches_tracked"] == 300
    assert torch.equal(load_file(tmp_path / "merged" / "model.safetensors")["head.weight"], torch.ones(2, 8))
    assert not (tmp_path / "merged2").exists()
