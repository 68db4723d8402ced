"""The policy's teacher: advantages, objectives, and the backends that turn them into weight updates."""
