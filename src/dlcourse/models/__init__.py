"""Models: the LightningModule base, the tasks, optimisers and schedules."""
