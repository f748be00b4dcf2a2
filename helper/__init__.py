"""What every script shares: options, loop, checkpoints, logs. No method is named here."""
