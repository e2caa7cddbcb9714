"""What the law takes back: how long a recording may stay, and its way out."""
