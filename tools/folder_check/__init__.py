"""What ``check_data.py`` finds out about a camera folder, and how it draws it."""
