"""Fine-tuning, for the attack and for recovery alike."""
