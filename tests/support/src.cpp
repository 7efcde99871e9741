#include <upgradeable_streams/src.hpp>
