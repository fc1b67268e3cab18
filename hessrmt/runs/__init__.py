"""What a command does, from its settings to its file and result: one module a command."""
