// KEYWISE_INLINE: for functions that target files share with the rest of the program.
#pragma once

// Always inlined: target files are compiled with other flags, and the linker must not let a copy of
// theirs serve the rest.
#define KEYWISE_INLINE [[gnu::always_inline]] inline
