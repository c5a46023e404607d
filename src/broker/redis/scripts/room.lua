#!lua
-- Whether there is memory for messages: the server refuses this, as it does publishing, while there is none. KEYS[1]: any.
return 1
