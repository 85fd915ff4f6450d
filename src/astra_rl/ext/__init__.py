"""Extensions for other libraries."""
