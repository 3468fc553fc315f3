from hybridrec._core._baseline import *
