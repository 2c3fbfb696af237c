"""Check and draw a camera folder for ``check_data.py``."""
