"""Reading the open web safely: addresses chosen by a policy, pages and pictures written by strangers."""
