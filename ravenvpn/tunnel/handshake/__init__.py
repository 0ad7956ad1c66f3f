"""The handshake of whitepaper §5.4: messages, indices, own keys, state machine and exchange."""
