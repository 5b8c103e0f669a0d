"""The host's side of the guest's agent, which runs commands for it."""
