"""HTTP: what operators, platforms and desktops see."""
