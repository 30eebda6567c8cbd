/* SPDX-License-Identifier: MIT
 *
 * The mutex that Mbed TLS uses on Windows: a slim lock of the system's, which needs neither winpthreads nor windows.h here. The
 * program gives the functions for it with mbedtls_threading_set_alt.
 */
typedef struct {
    void *lock; /* an SRWLOCK, which has this size */
} mbedtls_threading_mutex_t;
