#include "task.hpp"

template class test::task<void>;
