"""The commands that look: at runs, at configurations. Each file as in launch/commands."""
