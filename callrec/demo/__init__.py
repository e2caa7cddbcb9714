"""The demo: a private stack of real stores, a simulated switch, and the scenarios played on them."""
