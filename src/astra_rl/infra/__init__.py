"""Files, JSON, redaction and imports: what every package builds on."""
