import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lightning_modules.finite import FiniteLoss, first_not_finite
from tests.lightning_modules.test_reproducibility import Plain, fit


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x * self.weight / (x - x)


def test_names_the_innermost_first_layer():
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), Scale()))
    assert first_not_finite(network, torch.ones(1, 2)) == "1.1 (Scale) is the first layer with such an output"
    assert first_not_finite(network[:1], torch.ones(1, 2)) is None
    assert first_not_finite(network, torch.tensor([[1.0, torch.nan]])) == "the images of the batch hold such values"
    assert not any(module._forward_hooks for module in network.modules())


def test_stops_at_the_loss_and_names_weights(tmp_path):
    module = Plain()
    with torch.no_grad():
        module.network[2].weight[0, 0] = torch.inf
    says = r"the loss is (nan|-?inf) in epoch 0, step 0: network.2 \(Linear\) is the first layer with such an output"
    with pytest.raises(ValueError, match=f"{says}; not finite among the weights: network.2.weight$"):
        fit(tmp_path, module, [FiniteLoss()])


def test_a_loss_of_its_own(tmp_path):
    class Undefined(Plain):
        def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
            return super().training_step(batch, batch_idx) * torch.nan

    with pytest.raises(ValueError, match="all layers gave finite outputs, the loss itself is not$"):
        fit(tmp_path, Undefined(), [FiniteLoss()])


def test_no_checkpoint_of_such_weights(tmp_path):
    class Overflowing(Plain):
        def on_train_epoch_end(self) -> None:
            if self.current_epoch == 1:
                self.network[0].bias.data[1] = torch.nan

    kept = pl.callbacks.ModelCheckpoint(tmp_path, filename="it", enable_version_counter=False)
    with pytest.raises(ValueError, match="the weights are not finite after epoch 1, step 4; .*: network.0.bias$"):
        fit(tmp_path, Overflowing(), [FiniteLoss(), kept], max_epochs=2)
    assert torch.load(tmp_path / "it.ckpt", weights_only=True)["global_step"] == 2
