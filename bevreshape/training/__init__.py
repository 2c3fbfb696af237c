"""The Lightning side: task, optimizer, devices, callbacks, loggers, stopping and resuming."""
