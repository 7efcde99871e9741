#include <upgradeable_streams.hpp>

#include <iostream>

int main()
{
    std::cout << make_error_code(upgradeable_streams::errc::already_tls).message() << '\n';
}
