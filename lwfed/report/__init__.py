"""What a finished run looks like: its page and figures, and runs compared with one another."""
