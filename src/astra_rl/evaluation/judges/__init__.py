"""Quality of moderators and judges: labels, calibration, agreement, reward hacking."""
