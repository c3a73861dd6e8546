/* error_text.h - what the library remembers in C memory: the text of the last
 * failure of each thread, and the names of the statuses. */
#ifndef TPDE_ERROR_TEXT_H
#define TPDE_ERROR_TEXT_H

#include <stddef.h>
#include <stdint.h>

/* Status codes lie below this. */
#define STATUS_NAMES 256

/* Keeps a copy of bytes bytes at text for the calling thread. */
void error_text_set(const char *text, size_t bytes);
/* Returns the text of the calling thread, "" if there is none. */
const char *error_text(void);

/* Keeps name (not copied, never freed) as the name of code. */
void status_name_set(int32_t code, const char *name);
/* Returns the name of code, "unknown" if it has none. */
const char *status_name_of(int32_t code);

#endif /* TPDE_ERROR_TEXT_H */
