"""Presentation: report, exports, charts, escaping and gates."""
