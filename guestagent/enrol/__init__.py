"""How a new VM gets its certificate: it makes the key, shows a short-lived token, and the authority signs."""
