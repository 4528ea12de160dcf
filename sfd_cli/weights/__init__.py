"""Where weights come from and how foreign ones are read."""
