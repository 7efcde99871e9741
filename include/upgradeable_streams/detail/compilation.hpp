/// @file
/// Whether functions that are no templates are compiled in each file that uses them, or once, in that of `src.hpp`.
#ifndef UPGRADEABLE_STREAMS_DETAIL_COMPILATION_HPP
#define UPGRADEABLE_STREAMS_DETAIL_COMPILATION_HPP

#ifdef UPGRADEABLE_STREAMS_SEPARATE_COMPILATION
#define UPGRADEABLE_STREAMS_DECL
#else
#define UPGRADEABLE_STREAMS_DECL inline
#endif

#if !defined(UPGRADEABLE_STREAMS_SEPARATE_COMPILATION) || defined(UPGRADEABLE_STREAMS_SRC_HPP)
#define UPGRADEABLE_STREAMS_DEFINITIONS
#endif

#endif
