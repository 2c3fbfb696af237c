"""Instruments for any reshaper, and finished runs compared."""
