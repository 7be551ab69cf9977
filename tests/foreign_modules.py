"""LightningModules and their data as other projects have them: plain Lightning, with nothing of this package."""

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

# --- an autoencoder ---


class WavesDataModule(L.LightningDataModule):
    """Noisy sine waves, 32 values each: three numbers, their frequency, phase and height, describe one."""

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        self.train, self.val, self.test = (TensorDataset(self.waves(rows, rows)) for rows in (256, 64, 96))

    @staticmethod
    def waves(rows: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        frequency, phase, height = torch.rand(3, rows, 1, generator=generator)
        time = torch.linspace(0, 6, 32)
        waves = (0.5 + height) * torch.sin((0.5 + frequency) * time + 3 * phase)
        return waves + 0.05 * torch.randn(rows, 32, generator=generator)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, self.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.test, self.batch_size)


class LitAutoEncoder(L.LightningModule):
    def __init__(self, bottleneck: int = 3, lr: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.encoder = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, bottleneck))
        self.decoder = nn.Sequential(nn.Linear(bottleneck, 24), nn.ReLU(), nn.Linear(24, 32))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))  # type: ignore[no-any-return]

    def step(self, batch: list[Tensor]) -> Tensor:
        (x,) = batch
        return F.mse_loss(self(x), x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.step(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.step(batch), prog_bar=True)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test_loss", self.step(batch))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])


# --- a language model ---


class Counting(Dataset[Tensor]):
    """Token ids, T int64: counting modulo the vocabulary, each sequence in steps of its own."""

    def __init__(self, sequences: int, vocabulary: int = 11, length: int = 12) -> None:
        numbers = torch.arange(sequences)
        self.tokens = (numbers[:, None] + (1 + numbers[:, None] % 3) * torch.arange(length)) % vocabulary

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Tensor:
        return self.tokens[index]


class LanguageModel(L.LightningModule):
    """A small transformer that predicts the next token; a batch is B x T token ids, and nothing else."""

    def __init__(self, vocabulary: int = 11, width: int = 16, length: int = 12) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.1 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, 2, 32, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device)
        return self.head(self.layers(self.embedding(tokens) + self.position[:length], mask, is_causal=True))  # type: ignore[no-any-return]

    def step(self, tokens: Tensor) -> Tensor:
        return F.cross_entropy(self(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        loss = self.step(batch)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return {"loss": loss}

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("perplexity", self.step(batch).exp())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def sequences(count: int = 96) -> DataLoader[Any]:
    return DataLoader(Counting(count), 16)


# --- manual optimisation with two optimisers ---


class GAN(L.LightningModule):
    """A generative adversarial network for points on a circle. Its step returns nothing."""

    def __init__(self, latent: int = 4) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.latent = latent
        self.generator = nn.Sequential(nn.Linear(latent, 16), nn.ReLU(), nn.Linear(16, 2))
        self.discriminator = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))

    def forward(self, noise: Tensor) -> Tensor:
        return self.generator(noise)  # type: ignore[no-any-return]

    def adversarial_loss(self, points: Tensor, is_real: bool) -> Tensor:
        logits = self.discriminator(points)
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(is_real)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        (real,) = batch
        for_generator, for_discriminator = self.optimizers()  # type: ignore[attr-defined, misc]
        fake = self(torch.randn(len(real), self.latent, device=self.device))

        self.toggle_optimizer(for_generator)
        generator_loss = self.adversarial_loss(fake, True)
        for_generator.zero_grad()
        self.manual_backward(generator_loss)
        for_generator.step()
        self.untoggle_optimizer(for_generator)

        self.toggle_optimizer(for_discriminator)
        fake = fake.detach()
        discriminator_loss = (self.adversarial_loss(real, True) + self.adversarial_loss(fake, False)) / 2
        for_discriminator.zero_grad()
        self.manual_backward(discriminator_loss)
        for_discriminator.step()
        self.untoggle_optimizer(for_discriminator)
        self.log_dict({"g_loss": generator_loss, "d_loss": discriminator_loss}, prog_bar=True)

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[Any]]:
        generator = torch.optim.Adam(self.generator.parameters(), lr=2e-3, betas=(0.5, 0.999))
        return [generator, torch.optim.Adam(self.discriminator.parameters(), lr=2e-3, betas=(0.5, 0.999))], []


class GANThatReturnsLosses(GAN):
    """The same, but its step returns a dictionary, without the key ``loss``."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:  # type: ignore[override]
        super().training_step(batch, batch_idx)
        return {"real": batch[0].mean()}


def circle(points: int = 128) -> DataLoader[Any]:
    angles = torch.linspace(0, 6.28, points)
    return DataLoader(TensorDataset(torch.stack([angles.sin(), angles.cos()], 1)), 32, shuffle=True)


# --- several validation loaders ---


class BlobsDataModule(L.LightningDataModule):
    """Points of three classes; validated on clean points, and on noisy ones."""

    def __init__(self, batch_size: int = 25) -> None:
        super().__init__()
        self.batch_size = batch_size

    def blobs(self, rows: int, seed: int, noise: float = 0.5) -> TensorDataset:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(rows) % 3
        centres = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
        return TensorDataset(centres[labels] + noise * torch.randn(rows, 2, generator=generator), labels)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.blobs(150, 0), self.batch_size, shuffle=True)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        return [DataLoader(self.blobs(60, 1), self.batch_size), DataLoader(self.blobs(40, 2, 1.5), self.batch_size)]

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.blobs(90, 3), self.batch_size)


class BlobClassifier(L.LightningModule):
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Linear(2, 3)

    def forward(self, points: Tensor) -> Tensor:
        return self.network(points)  # type: ignore[no-any-return]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        logits = self(batch[0])
        name = ("clean", "noisy")[dataloader_idx]
        self.log(f"{name}_loss", F.cross_entropy(logits, batch[1]), add_dataloader_idx=False)
        self.log("accuracy", (logits.argmax(1) == batch[1]).float().mean())

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test_accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"])


# --- ReduceLROnPlateau, and batches that are dictionaries ---


class Records(Dataset[dict[str, Tensor]]):
    def __init__(self, rows: int) -> None:
        self.x = torch.linspace(-1, 1, rows)[:, None]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "y": self.x[index].square()}


class PlateauRegressor(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)  # type: ignore[no-any-return]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return F.mse_loss(self(batch["x"]), batch["y"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.mse_loss(self(batch["x"]), batch["y"]))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.3)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss"}}


def records(rows: int = 64) -> DataLoader[Any]:
    return DataLoader(Records(rows), 16)


# --- a stream ---


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Samples of a line, one after another, without a length; without ``samples`` the stream never ends."""

    def __init__(self, seed: int, samples: int | None = None) -> None:
        self.seed, self.samples = seed, samples

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        number = 0
        while self.samples is None or number < self.samples:
            x = torch.randn(3, generator=generator)
            yield x, x.sum(0, keepdim=True) + 0.1 * torch.randn(1, generator=generator)
            number += 1


class StreamDataModule(L.LightningDataModule):
    def __init__(self, samples: int | None = None) -> None:
        super().__init__()
        self.samples = samples

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Stream(0, self.samples), 8)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Stream(1, 40), 8)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Stream(2, 60), 8)


class StreamRegressor(L.LightningModule):
    def __init__(self, lr: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)  # type: ignore[no-any-return]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.mse_loss(self(batch[0]), batch[1]))

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test_loss", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"])
