// KEYWISE_TARGET: the target that a file is compiled for, and its namespace inside keywise.
#pragma once

// Files in targets/ define it; a header that is compiled alone belongs to the portable target.
#ifndef KEYWISE_TARGET
#define KEYWISE_TARGET portable
#endif
