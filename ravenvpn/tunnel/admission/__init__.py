"""Admission of handshake messages under load: queue, cookies, rate limits, initiations from unknown keys (§5.3)."""
