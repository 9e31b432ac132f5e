"""What decisions on lengths rest on, measured: recorded blocks, replays, calibration, tables of costs."""
