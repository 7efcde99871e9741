find_package(Asio 1.22.1 REQUIRED)
