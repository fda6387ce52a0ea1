"""What moves the weights: Muon, and timm's optimizers and learning rate schedules by name."""
